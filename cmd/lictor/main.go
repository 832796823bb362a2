// Command lictor is the whole of Lictor in one binary.
package main

import (
	"context"
	"os"

	"github.com/lictor-ha/lictor/cmd/lictor/commands"
)

func main() { os.Exit(commands.Run(context.Background())) }
