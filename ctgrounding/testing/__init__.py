"""For people who extend ctgrounding: contract suites and tiny inputs. Public, and used by our own tests."""
