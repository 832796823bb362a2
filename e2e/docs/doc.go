// Package docs keeps the pages under docs/ true.
//
// It makes docs/cli and the man pages from the commands (cmd/cli), and docs/settings.md
// from the code (cmd/settings): the comments of the configuration types say what a
// setting means and why, the loaders fill in the defaults, and the rules are what the
// loaders answer to values that break them. Its tests read every page: links and anchors
// must lead somewhere, and the files, make targets, commands, flags, tests, lab faults and
// settings that a page names must exist. Commands in a fence marked "sh run" are run.
package docs
