// Command etcd is the real etcd server, built from its Go module: for tests and for trying things
// where no etcd is installed. Flags are etcd's own. Called as etcdctl or etcdutl it is that program: they
// are of one version so, and nearly all of their code is the same.
package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/etcdctl/v3/ctlv3"
	"go.etcd.io/etcd/etcdutl/v3/etcdutl"
	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() {
	switch filepath.Base(os.Args[0]) {
	case "etcdctl":
		ctlv3.MustStart()
	case "etcdutl":
		utl()
	default:
		serve()
	}
}

// What the scripts of infra use of etcdutl; its own main is no package that could be called.
func utl() {
	root := &cobra.Command{Use: "etcdutl"}
	root.PersistentFlags().StringVarP(&etcdutl.OutputFormat, "write-out", "w", "simple", "format of the output")
	root.PersistentFlags().DurationVar(&etcdutl.FlockTimeout, "timeout", 10*time.Second, "longest wait for the lock of the data")
	root.AddCommand(etcdutl.NewSnapshotCommand())
	if err := root.Execute(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve() {
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
