// GyreInference
