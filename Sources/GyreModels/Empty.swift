// GyreModels
