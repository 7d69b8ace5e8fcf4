// Command etcd is the real etcd server, built from its Go module: for tests and for trying things
// where no etcd is installed. Flags are etcd's own.
package main

import (
	"io"
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() {
	// Whoever started the server holds the other end of its standard input: when that process is gone, however it
	// went, the input ends and so does the server. Data that etcd has acknowledged is on disk by then.
	if os.Getenv("FLEETCRON_EXIT_ON_STDIN_EOF") == "1" {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			os.Exit(1)
		}()
	}
	etcdmain.Main(os.Args)
}
