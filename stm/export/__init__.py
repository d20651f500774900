"""Models as programs of other runtimes: traced once, written for a runtime, and run there before anybody gets them."""
