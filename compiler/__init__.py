"""The compiler: export, bundle, build, run, measure."""
