// GyreCheckpoints
