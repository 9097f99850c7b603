// GyreCPU
