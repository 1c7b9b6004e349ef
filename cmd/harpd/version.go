package main

// version is what harpd version prints; empty means what Go recorded at build time. A release sets it with
// -ldflags "-X main.version=v1.2.3".
var version string
