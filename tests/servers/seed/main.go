// Command seed behaves towards etcd, MongoDB and HTTP clients as the system that Fleetcron replaces (owenliang/crontab, 2018) is
// known to: `seed worker` and `seed master`. The tests let Fleetcron live beside it. Written from its keys, documents and answers;
// none of its code is in here.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

const (
	jobsDir    = "/cron/jobs/"
	killerDir  = "/cron/killer/"
	lockDir    = "/cron/lock/"
	workersDir = "/cron/workers/"
)

// job is the value of a key below jobsDir; fields that it does not know are dropped, as in the original.
type job struct {
	Name     string `json:"name"`
	Command  string `json:"command"`
	CronExpr string `json:"cronExpr"`
}

// record has the original's eight fields; the driver adds an ObjectId. Times are milliseconds since 1970.
type record struct {
	JobName      string `json:"jobName" bson:"jobName"`
	Command      string `json:"command" bson:"command"`
	Err          string `json:"err" bson:"err"`
	Output       string `json:"output" bson:"output"`
	PlanTime     int64  `json:"planTime" bson:"planTime"`
	ScheduleTime int64  `json:"scheduleTime" bson:"scheduleTime"`
	StartTime    int64  `json:"startTime" bson:"startTime"`
	EndTime      int64  `json:"endTime" bson:"endTime"`
}

func unpackJob(value []byte) (*job, error) {
	j := &job{}
	err := json.Unmarshal(value, j)
	return j, err
}

// stores are what both subcommands work on.
type stores struct {
	etcd *clientv3.Client
	log  *mongo.Collection
}

func connect(endpoints, uri string) (*stores, error) {
	etcd, err := clientv3.New(clientv3.Config{
		Endpoints:   strings.Split(endpoints, ","),
		DialTimeout: 5 * time.Second,
	})
	if err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	client, err := mongo.Connect(options.Client().ApplyURI(uri).SetTimeout(5 * time.Second))
	if err != nil {
		return nil, fmt.Errorf("mongodb: %w", err)
	}
	return &stores{etcd: etcd, log: client.Database("cron").Collection("log")}, nil
}

func main() {
	log.SetFlags(log.Ltime | log.Lmicroseconds)
	if len(os.Args) < 2 {
		log.Fatal("usage: seed worker|master [flags]")
	}
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	etcd := flags.String("etcd", "127.0.0.1:2379", "etcd endpoints, comma-separated")
	mongodb := flags.String("mongo", "mongodb://127.0.0.1:27017", "MongoDB URI")
	id := flags.String("id", "", "worker: the name to register, in place of the address")
	listen := flags.String("listen", "127.0.0.1:8070", "master: where to serve")
	_ = flags.Parse(os.Args[2:])

	// Whoever started the server holds the other end of its standard input: when that process is gone, however it
	// went, the input ends and so does the server.
	if os.Getenv("FLEETCRON_EXIT_ON_STDIN_EOF") == "1" {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			os.Exit(1)
		}()
	}
	s, err := connect(*etcd, *mongodb)
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch os.Args[1] {
	case "worker":
		err = runWorker(ctx, s, *id)
	case "master":
		err = runMaster(ctx, s, *listen)
	default:
		err = fmt.Errorf("no subcommand %q: worker or master", os.Args[1])
	}
	if err != nil {
		log.Fatal(err)
	}
}
