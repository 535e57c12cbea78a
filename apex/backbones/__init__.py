"""One protocol from 1M to 20B parameters; see `base.Backbone`."""
