// GyreRecurrence
