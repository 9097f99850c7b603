// GyreMixers
