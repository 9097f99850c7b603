// GyreLayers
