// Package testkit is what the tests of all packages share: waiting, and ports for the
// servers that they start. It imports nothing of Lictor.
package testkit
