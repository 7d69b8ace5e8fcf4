// Command compose reads a compose file as docker compose does (with its own library, compose-go) and prints what it has understood as
// JSON: the services, and what the library warned of. The tests hold the launcher's own reader against it.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/sirupsen/logrus"
)

type project struct {
	Name     string             `json:"name"`
	Services map[string]service `json:"services"`
	Warnings []string           `json:"warnings"`
}

type service struct {
	Image       string            `json:"image"`
	Build       *build            `json:"build"`
	Entrypoint  []string          `json:"entrypoint"`
	Command     []string          `json:"command"`
	Environment map[string]string `json:"environment"`
	WorkingDir  string            `json:"workingDir"`
	Mounts      []mount           `json:"mounts"`
	Ports       []port            `json:"ports"`
	DependsOn   map[string]string `json:"dependsOn"` // name to condition
	Health      *health           `json:"health"`
	StopSignal  string            `json:"stopSignal"`
	StopGraceMs int64             `json:"stopGraceMs"`
	Init        bool              `json:"init"`
	Restart     string            `json:"restart"`
	LogOptions  map[string]string `json:"logOptions"`
}

type build struct {
	Context    string   `json:"context"`
	Dockerfile string   `json:"dockerfile"`
	Target     string   `json:"target"`
	Arguments  []string `json:"arguments"` // their names
}

type mount struct {
	Type     string `json:"type"`
	Source   string `json:"source"`
	Target   string `json:"target"`
	ReadOnly bool   `json:"readOnly"`
}

type port struct {
	HostIP    string `json:"hostIp"`
	Published string `json:"published"`
	Target    uint32 `json:"target"`
	Protocol  string `json:"protocol"`
}

type health struct {
	Test          []string `json:"test"`
	IntervalMs    int64    `json:"intervalMs"`
	TimeoutMs     int64    `json:"timeoutMs"`
	StartPeriodMs int64    `json:"startPeriodMs"`
	Retries       uint64   `json:"retries"`
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: compose FILE")
		os.Exit(2)
	}
	var warned bytes.Buffer
	logrus.SetOutput(&warned)
	loaded, err := load(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	out := project{Name: loaded.Name, Services: map[string]service{}, Warnings: []string{}}
	for name, s := range loaded.Services {
		out.Services[name] = read(s)
	}
	if text := strings.TrimSpace(warned.String()); text != "" {
		out.Warnings = strings.Split(text, "\n")
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// load checks the file against the schema and for consistency, and fills in defaults. The environment is not read: what would depend on
// it is a warning.
func load(path string) (*types.Project, error) {
	options, err := cli.NewProjectOptions([]string{path},
		cli.WithInterpolation(true),
		cli.WithNormalization(true),
		cli.WithConsistency(true),
		cli.WithResolvedPaths(true))
	if err != nil {
		return nil, err
	}
	return options.LoadProject(context.Background())
}

func read(s types.ServiceConfig) service {
	out := service{
		Image:       s.Image,
		Entrypoint:  s.Entrypoint,
		Command:     s.Command,
		Environment: map[string]string{},
		WorkingDir:  s.WorkingDir,
		DependsOn:   map[string]string{},
		StopSignal:  s.StopSignal,
		StopGraceMs: ms(s.StopGracePeriod),
		Init:        s.Init != nil && *s.Init,
		Restart:     s.Restart,
	}
	for name, value := range s.Environment {
		if value != nil {
			out.Environment[name] = *value
		}
	}
	for _, v := range s.Volumes {
		out.Mounts = append(out.Mounts, mount{Type: v.Type, Source: v.Source, Target: v.Target, ReadOnly: v.ReadOnly})
	}
	for _, p := range s.Ports {
		out.Ports = append(out.Ports, port{HostIP: p.HostIP, Published: p.Published, Target: p.Target, Protocol: p.Protocol})
	}
	for name, d := range s.DependsOn {
		out.DependsOn[name] = d.Condition
	}
	if b := s.Build; b != nil {
		out.Build = &build{Context: b.Context, Dockerfile: b.Dockerfile, Target: b.Target, Arguments: []string{}}
		for name := range b.Args {
			out.Build.Arguments = append(out.Build.Arguments, name)
		}
	}
	if h := s.HealthCheck; h != nil {
		out.Health = &health{
			Test:          h.Test,
			IntervalMs:    ms(h.Interval),
			TimeoutMs:     ms(h.Timeout),
			StartPeriodMs: ms(h.StartPeriod),
		}
		if h.Retries != nil {
			out.Health.Retries = *h.Retries
		}
	}
	if s.Logging != nil {
		out.LogOptions = s.Logging.Options
	}
	return out
}

func ms(d *types.Duration) int64 {
	if d == nil {
		return 0
	}
	return time.Duration(*d).Milliseconds()
}
