// GyreTokenizers
