"""The command line: one thin file a command. Parse, call the library, show; heavy imports wait in the bodies."""
