// Command cli writes the pages in docs/cli, or, with -man, the man pages that packages have.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/lictor-ha/lictor/e2e/docs"
)

func main() {
	man := flag.String("man", "", "write man pages into this directory instead")
	flag.Parse()
	write, dir := docs.WriteCommands, filepath.Join("docs", "cli")
	if *man != "" {
		write, dir = docs.WriteManual, *man
	}
	if err := write(dir); err != nil {
		fmt.Fprintln(os.Stderr, "cli:", err)
		os.Exit(1)
	}
}
