extension CUDADevice {
  /// Where the library keeps what it made for this machine: `$GYRE_CACHE`, else
  /// `$XDG_CACHE_HOME/gyre`, else `~/.cache/gyre`; nil without a home.
  public static var defaultCacheFolder: String? { CubinCache.defaultFolder }
}
