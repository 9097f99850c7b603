// GyreConformance
