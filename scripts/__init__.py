"""The helper commands of this repository; a package so that tests and commands can import each other's parts."""
