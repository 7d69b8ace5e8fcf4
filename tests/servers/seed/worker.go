package main

import (
	"context"
	"errors"
	"log"
	"math/rand"
	"net"
	"os/exec"
	"strings"
	"time"

	"github.com/gorhill/cronexpr"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	registrationSeconds = 10
	lockSeconds         = 5
	sleepBeforeLock     = time.Second
	batchRecords        = 100
	batchTimeout        = time.Second
)

var errLocked = errors.New("锁已被占用")

type plan struct {
	job  *job
	expr *cronexpr.Expression
	next time.Time
}

// run is a fire that is being executed in this process, or is trying to get its lock.
type run struct {
	job                *job
	planned, scheduled time.Time
	ctx                context.Context
	cancel             context.CancelFunc
}

type result struct {
	run        *run
	output     []byte
	err        error
	start, end time.Time
}

type event struct {
	kind string // save, delete, kill
	job  *job
}

type worker struct {
	*stores
	events  chan event
	results chan result
	records chan record
}

func runWorker(ctx context.Context, s *stores, id string) error {
	if id == "" {
		var err error
		if id, err = localAddress(); err != nil {
			return err
		}
	}
	w := &worker{s, make(chan event, 1000), make(chan result, 1000), make(chan record, 1000)}
	go w.register(ctx, id)
	go w.sink(ctx)
	go w.schedule(ctx)
	if err := w.watchJobs(ctx); err != nil {
		return err
	}
	go w.watchKills(ctx)
	<-ctx.Done() // it ends at once: leases run out, nothing is written
	return nil
}

func localAddress() (string, error) {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return "", err
	}
	for _, address := range addresses {
		if n, ok := address.(*net.IPNet); ok && !n.IP.IsLoopback() && n.IP.To4() != nil {
			return n.IP.String(), nil
		}
	}
	return "", errors.New("没有找到网卡IP")
}

// register keeps the worker's key: puts it over whatever is there, and again when the keep-alive ends.
func (w *worker) register(ctx context.Context, id string) {
	for ctx.Err() == nil {
		if err := w.registerOnce(ctx, id); err != nil {
			log.Println("register:", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func (w *worker) registerOnce(ctx context.Context, id string) error {
	lease, err := w.etcd.Grant(ctx, registrationSeconds)
	if err != nil {
		return err
	}
	alive, err := w.etcd.KeepAlive(ctx, lease.ID)
	if err != nil {
		return err
	}
	if _, err := w.etcd.Put(ctx, workersDir+id, "", clientv3.WithLease(lease.ID)); err != nil {
		return err
	}
	for range alive {
	}
	return nil
}

func (w *worker) watchJobs(ctx context.Context) error {
	listed, err := w.etcd.Get(ctx, jobsDir, clientv3.WithPrefix())
	if err != nil {
		return err
	}
	for _, pair := range listed.Kvs {
		if j, err := unpackJob(pair.Value); err == nil {
			w.events <- event{"save", j}
		}
	}
	changes := w.etcd.Watch(ctx, jobsDir, clientv3.WithRev(listed.Header.Revision+1), clientv3.WithPrefix())
	go func() {
		for reply := range changes {
			for _, change := range reply.Events {
				if change.Type == mvccpb.DELETE {
					w.events <- event{"delete", &job{Name: strings.TrimPrefix(string(change.Kv.Key), jobsDir)}}
				} else if j, err := unpackJob(change.Kv.Value); err == nil {
					w.events <- event{"save", j}
				}
			}
		}
	}()
	return nil
}

func (w *worker) watchKills(ctx context.Context) {
	for reply := range w.etcd.Watch(ctx, killerDir, clientv3.WithPrefix()) {
		for _, change := range reply.Events {
			if change.Type == mvccpb.PUT {
				w.events <- event{"kill", &job{Name: strings.TrimPrefix(string(change.Kv.Key), killerDir)}}
			}
		}
	}
}

// schedule is the loop that owns the tables of plans and of runs.
func (w *worker) schedule(ctx context.Context) {
	plans, running := map[string]*plan{}, map[string]*run{}
	for {
		wait := time.Second
		now := time.Now()
		for _, p := range plans {
			// A job that fires no more has the zero time, which the original ran over and over: here it rests.
			if !p.next.IsZero() && !p.next.After(now) {
				w.start(ctx, p, running)
				p.next = p.expr.Next(now)
			}
			if left := p.next.Sub(now); !p.next.IsZero() && left < wait {
				wait = left
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		case e := <-w.events:
			switch e.kind {
			case "save":
				if expr, err := cronexpr.Parse(e.job.CronExpr); err == nil {
					plans[e.job.Name] = &plan{e.job, expr, expr.Next(time.Now())}
				}
			case "delete":
				delete(plans, e.job.Name)
			case "kill":
				if r := running[e.job.Name]; r != nil {
					r.cancel()
				}
			}
		case done := <-w.results:
			delete(running, done.run.job.Name)
			if done.err != errLocked {
				w.records <- recordOf(done)
			}
		}
	}
}

func (w *worker) start(ctx context.Context, p *plan, running map[string]*run) {
	if running[p.job.Name] != nil {
		return
	}
	r := &run{job: p.job, planned: p.next, scheduled: time.Now()}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	running[p.job.Name] = r
	go w.execute(ctx, r)
}

func (w *worker) execute(ctx context.Context, r *run) {
	done := result{run: r, start: time.Now()}
	time.Sleep(time.Duration(rand.Int63n(int64(sleepBeforeLock))))
	unlock, err := w.tryLock(ctx, r.job.Name)
	if err != nil {
		done.err, done.end = err, time.Now()
		w.results <- done
		return
	}
	done.start = time.Now()
	done.output, done.err = exec.CommandContext(r.ctx, "/bin/bash", "-c", r.job.Command).CombinedOutput()
	done.end = time.Now()
	w.results <- done
	unlock()
}

// tryLock takes the job's lock, or answers errLocked.
func (w *worker) tryLock(ctx context.Context, name string) (func(), error) {
	lease, err := w.etcd.Grant(ctx, lockSeconds)
	if err != nil {
		return nil, err
	}
	keep, cancel := context.WithCancel(ctx)
	unlock := func() {
		cancel()
		_, _ = w.etcd.Revoke(ctx, lease.ID)
	}
	alive, err := w.etcd.KeepAlive(keep, lease.ID)
	if err != nil {
		unlock()
		return nil, err
	}
	go func() {
		for range alive {
		}
	}()
	key := lockDir + name
	reply, err := w.etcd.Txn(ctx).
		If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).
		Then(clientv3.OpPut(key, "", clientv3.WithLease(lease.ID))).
		Else(clientv3.OpGet(key)).
		Commit()
	if err == nil && !reply.Succeeded {
		err = errLocked
	}
	if err != nil {
		unlock()
		return nil, err
	}
	return unlock, nil
}

func recordOf(done result) record {
	said := ""
	if done.err != nil {
		said = done.err.Error()
	}
	return record{
		JobName:      done.run.job.Name,
		Command:      done.run.job.Command,
		Err:          said,
		Output:       string(done.output),
		PlanTime:     done.run.planned.UnixMilli(),
		ScheduleTime: done.run.scheduled.UnixMilli(),
		StartTime:    done.start.UnixMilli(),
		EndTime:      done.end.UnixMilli(),
	}
}

// sink stores records in batches: full ones, or as old as the timeout. What MongoDB does not take is dropped.
func (w *worker) sink(ctx context.Context) {
	var batch []record
	var timeout <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case one := <-w.records:
			if batch == nil {
				timeout = time.After(batchTimeout)
			}
			if batch = append(batch, one); len(batch) < batchRecords {
				continue
			}
		case <-timeout:
		}
		if _, err := w.log.InsertMany(ctx, batch); err != nil {
			log.Println("records dropped:", err)
		}
		batch, timeout = nil, nil
	}
}
