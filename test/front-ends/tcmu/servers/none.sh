# No server: the scenario brings its own.
