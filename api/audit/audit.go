// Package audit keeps the trail of who asked for what: one line of JSON for each call of the API that may change
// something, each that was refused for lack of a right, and each login. It never sees bodies, secrets or tokens.
package audit

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// Record is one line. Ids that are not known are left out.
type Record struct {
	Time      time.Time `json:"time"`
	RequestID string    `json:"request_id"`
	// User and Project are of the token; of a login, of the user that tried to, if there is such a one.
	User    string `json:"user_id,omitempty"`
	Project string `json:"project_id,omitempty"`
	// Credential is the application credential that the token stems from.
	Credential string `json:"application_credential_id,omitempty"`
	Remote     string `json:"remote"` // address of the connection's other end
	Method     string `json:"method"`
	Route      string `json:"route"`  // the pattern of the path
	Action     string `json:"action"` // create, update, delete, look, login, or the key of an action
	// On are the ids in the path by their names in the route; Made is what the call made.
	On     map[string]string `json:"on,omitempty"`
	Made   string            `json:"made,omitempty"`
	Result string            `json:"result"` // taken, refused, failed
	Status int               `json:"status"`
	Code   string            `json:"code,omitempty"` // the vendor's, of a refusal
}

// Stdout is the path that means standard output.
const Stdout = "-"

// Log appends records to a file. A nil Log keeps none. It is safe for concurrent use.
type Log struct {
	path string

	mu   sync.Mutex // guards what follows, also across the write: lines are whole and in order
	out  io.WriteCloser
	torn bool // the last line may lack its end
}

// Open opens the file at path, or makes it, for its owner alone; "-" is standard output, "" gives a nil Log.
func Open(path string) (*Log, error) {
	if path == "" {
		return nil, nil
	}
	l := &Log{path: path}
	if path == Stdout {
		l.out = keepOpen{os.Stdout}
		return l, nil
	}
	var err error
	l.out, err = appendTo(path)
	return l, err
}

func appendTo(path string) (io.WriteCloser, error) {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the audit log: %w", err)
	}
	return f, nil
}

// keepOpen is a file that is not ours to close.
type keepOpen struct{ io.Writer }

func (keepOpen) Close() error { return nil }

// Write appends a record. After an error the next line begins anew, so that half a line spoils itself only. The line
// is in the page cache then: it outlives the process, and a loss of power may take the last ones.
func (l *Log) Write(r Record) error {
	if l == nil {
		return nil
	}
	line, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode an audit line: %w", err)
	}
	line = append(line, '\n')
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.torn {
		line = append([]byte{'\n'}, line...)
	}
	n, err := l.out.Write(line)
	if err != nil {
		l.torn = l.torn || n > 0
		return fmt.Errorf("write to the audit log: %w", err)
	}
	l.torn = false
	return nil
}

// Reopen opens the path again, for who has renamed the file. If it cannot be opened, the old file is written on.
func (l *Log) Reopen() error {
	if l == nil || l.path == Stdout {
		return nil
	}
	next, err := appendTo(l.path)
	if err != nil {
		return err
	}
	l.mu.Lock()
	old := l.out
	l.out, l.torn = next, false
	l.mu.Unlock()
	return old.Close()
}

// Close ends the log; records after it are errors.
func (l *Log) Close() error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.out.Close()
	l.out = ended{}
	return err
}

type ended struct{}

func (ended) Write([]byte) (int, error) { return 0, errors.New("it is closed") }
func (ended) Close() error              { return nil }
