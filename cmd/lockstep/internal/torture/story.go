package torture

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// story writes down what happens, when it happens: all of it to a file, the heads of it to people.
// It remembers the last round.
type story struct {
	mu    sync.Mutex // guards what follows
	file  *os.File
	w     *bufio.Writer
	out   io.Writer
	began time.Time
	round []string
}

func newStory(path string, out io.Writer) (*story, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	return &story{file: f, w: bufio.NewWriter(f), out: out, began: time.Now()}, nil
}

func (s *story) newRound(int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.round = nil
}

// note writes to the file only.
func (s *story) note(format string, args ...any) { s.write(false, fmt.Sprintf(format, args...)) }

// line writes to people, too.
func (s *story) line(format string, args ...any) { s.write(true, fmt.Sprintf(format, args...)) }

func (s *story) write(people bool, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	line := fmt.Sprintf("%s %9.3f  %s", now.UTC().Format("15:04:05.000"), now.Sub(s.began).Seconds(), text)
	s.round = append(s.round, line)
	fmt.Fprintln(s.w, line)
	_ = s.w.Flush() // a story that cannot be written is missed at its end, by close
	if people {
		fmt.Fprintln(s.out, text)
	}
}

// last is the story of the last round.
func (s *story) last() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.round...)
}

func (s *story) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.w.Flush(); err != nil {
		_ = s.file.Close() // the first error says it
		return err
	}
	return s.file.Close()
}
