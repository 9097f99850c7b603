// GyreTraining
