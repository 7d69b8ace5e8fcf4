package main

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

// killSeconds is how long a kill request lives: workers see its put, not the key.
const killSeconds = 1

// answer is always HTTP 200: a failure is told by errno.
type answer struct {
	Errno int    `json:"errno"`
	Msg   string `json:"msg"`
	Data  any    `json:"data"`
}

type master struct{ *stores }

func runMaster(ctx context.Context, s *stores, listen string) error {
	m := &master{s}
	mux := http.NewServeMux()
	for path, handle := range map[string]func(*http.Request) (any, error){
		"/job/save":    m.save,
		"/job/delete":  m.remove,
		"/job/list":    m.list,
		"/job/kill":    m.kill,
		"/job/log":     m.records,
		"/worker/list": m.workers,
	} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			err := r.ParseForm()
			var data any
			if err == nil {
				data, err = handle(r)
			}
			reply := answer{Msg: "success", Data: data}
			if err != nil {
				reply = answer{Errno: -1, Msg: err.Error()}
			}
			_ = json.NewEncoder(w).Encode(reply)
		})
	}
	server := &http.Server{Addr: listen, Handler: mux, ReadTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second}
	go func() {
		<-ctx.Done()
		_ = server.Close()
	}()
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		return err
	}
	return nil
}

// save stores whatever is a JSON object, whole: no check of name, command or expression.
func (m *master) save(r *http.Request) (any, error) {
	j := job{}
	if err := json.Unmarshal([]byte(r.PostForm.Get("job")), &j); err != nil {
		return nil, err
	}
	value, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	reply, err := m.etcd.Put(r.Context(), jobsDir+j.Name, string(value), clientv3.WithPrevKV())
	if err != nil {
		return nil, err
	}
	if reply.PrevKv != nil {
		if old, err := unpackJob(reply.PrevKv.Value); err == nil {
			return old, nil
		}
	}
	return nil, nil
}

func (m *master) remove(r *http.Request) (any, error) {
	reply, err := m.etcd.Delete(r.Context(), jobsDir+r.PostForm.Get("name"), clientv3.WithPrevKV())
	if err != nil {
		return nil, err
	}
	if len(reply.PrevKvs) > 0 {
		if old, err := unpackJob(reply.PrevKvs[0].Value); err == nil {
			return old, nil
		}
	}
	return nil, nil
}

func (m *master) list(r *http.Request) (any, error) {
	reply, err := m.etcd.Get(r.Context(), jobsDir, clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	jobs := make([]*job, 0)
	for _, pair := range reply.Kvs {
		if j, err := unpackJob(pair.Value); err == nil {
			jobs = append(jobs, j)
		}
	}
	return jobs, nil
}

func (m *master) kill(r *http.Request) (any, error) {
	lease, err := m.etcd.Grant(r.Context(), killSeconds)
	if err != nil {
		return nil, err
	}
	_, err = m.etcd.Put(r.Context(), killerDir+r.PostForm.Get("name"), "", clientv3.WithLease(lease.ID))
	return nil, err
}

func (m *master) records(r *http.Request) (any, error) {
	number := func(name string, fallback int64) int64 {
		if n, err := strconv.ParseInt(r.Form.Get(name), 10, 64); err == nil {
			return n
		}
		return fallback
	}
	found, err := m.log.Find(r.Context(), bson.D{{Key: "jobName", Value: r.Form.Get("name")}}, options.Find().
		SetSort(bson.D{{Key: "startTime", Value: -1}}).SetSkip(number("skip", 0)).SetLimit(number("limit", 20)))
	if err != nil {
		return nil, err
	}
	records := make([]record, 0)
	for found.Next(r.Context()) {
		one := record{}
		if err := found.Decode(&one); err == nil {
			records = append(records, one)
		}
	}
	return records, found.Close(r.Context())
}

func (m *master) workers(r *http.Request) (any, error) {
	reply, err := m.etcd.Get(r.Context(), workersDir, clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	ids := make([]string, 0)
	for _, pair := range reply.Kvs {
		ids = append(ids, strings.TrimPrefix(string(pair.Key), workersDir))
	}
	return ids, nil
}
