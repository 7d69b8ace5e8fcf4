// Command mongo serves the MongoDB wire protocol on a loopback port, backed by SQLite files (FerretDB 1.24): for tests
// and for trying things where no mongod is installed. It takes mongod's flags, as far as local-dev/docker-compose.yml gives
// them. What is changed of FerretDB is in ferretdb.patch.
package main

import (
	"context"
	"flag"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/FerretDB/FerretDB/ferretdb"
)

func main() {
	host := flag.String("bind_ip", "127.0.0.1", "IP address to serve at")
	all := flag.Bool("bind_ip_all", false, "serve at every address of the machine")
	port := flag.Int("port", 27017, "TCP port to serve")
	dir := flag.String("dbpath", "", "directory for the SQLite files (must exist)")
	tlsMode := flag.String("tlsMode", "disabled", "disabled, or requireTLS")
	identity := flag.String("tlsCertificateKeyFile", "", "PEM file of the server's certificate and its key")
	ca := flag.String("tlsCAFile", "", "PEM file of the CA whose client certificates are taken, and no other client")
	verbose := flag.Bool("v", false, "log at info level")
	flag.Parse()

	level := slog.LevelError
	if *verbose {
		level = slog.LevelInfo
	}
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))

	abs, err := filepath.Abs(*dir)
	if err != nil || *dir == "" {
		logger.Error("--dbpath DIR is required", "err", err)
		os.Exit(2)
	}
	if *all {
		*host = "0.0.0.0"
	}
	listener := ferretdb.ListenerConfig{}
	address := net.JoinHostPort(*host, strconv.Itoa(*port))
	switch *tlsMode {
	case "disabled":
		listener.TCP = address
	case "requireTLS":
		listener.TLS, listener.TLSCertFile, listener.TLSKeyFile, listener.TLSCAFile = address, *identity, *identity, *ca
	default:
		logger.Error("--tlsMode takes disabled and requireTLS", "given", *tlsMode)
		os.Exit(2)
	}
	u := url.URL{Scheme: "file", Path: abs + "/"}

	db, err := ferretdb.New(&ferretdb.Config{
		Listener:  listener,
		Handler:   "sqlite",
		SQLiteURL: u.String(),
		Logger:    logger,
	})
	if err != nil {
		logger.Error("start", "err", err)
		os.Exit(1)
	}
	// Whoever started the server holds the other end of its standard input: when that process is gone, however it
	// went, the input ends and so does the server.
	if os.Getenv("FLEETCRON_EXIT_ON_STDIN_EOF") == "1" {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			os.Exit(1)
		}()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := db.Run(ctx); err != nil {
		logger.Error("run", "err", err)
		os.Exit(1)
	}
}
