// GyrePlatform
