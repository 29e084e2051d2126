package identity

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"golang.org/x/crypto/argon2"

	"github.com/lockstep-dr/lockstep/api/rest"
)

// Parameters of new argon2id hashes: 19 MiB, 2 passes, 1 lane. Those of an old hash stand in it.
const (
	argonMemoryKiB = 19 * 1024
	argonTime      = 2
	argonThreads   = 1
	argonKeyBytes  = 32
	argonSaltBytes = 16
)

// maxWaiting bounds the logins that wait for their turn; more are answered with 503 at once.
const maxWaiting = 64

// maxPasswordBytes bounds what is hashed.
const maxPasswordBytes = 1024

// hasher checks passwords, a few at a time.
type hasher struct {
	turns   chan struct{} // capacity: checks at once
	waiting chan struct{} // capacity: checks running and waiting
	dummy   string        // checked when there is no such user, so that this takes as long
}

func newHasher(atOnce int) *hasher {
	dummy, err := HashPassword("no user has this password")
	if err != nil {
		panic(err) // the system's random source failed: nothing may go on
	}
	return &hasher{
		turns:   make(chan struct{}, atOnce),
		waiting: make(chan struct{}, atOnce+maxWaiting),
		dummy:   dummy,
	}
}

// HashPassword makes the PHC string of a password, which must have 1 to 1024 bytes.
func HashPassword(password string) (string, error) {
	if password == "" || len(password) > maxPasswordBytes {
		return "", fmt.Errorf("a password must have 1 to %d bytes", maxPasswordBytes)
	}
	salt := make([]byte, argonSaltBytes)
	if _, err := rand.Read(salt); err != nil {
		return "", fmt.Errorf("read random bytes: %w", err)
	}
	key := argon2.IDKey([]byte(password), salt, argonTime, argonMemoryKiB, argonThreads, argonKeyBytes)
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version,
		argonMemoryKiB, argonTime, argonThreads, b64.EncodeToString(salt), b64.EncodeToString(key)), nil
}

// verifyPassword reports whether the PHC string is that of the password.
func verifyPassword(phc, password string) (bool, error) {
	parts := strings.Split(phc, "$")
	if len(parts) != 6 || parts[1] != "argon2id" {
		return false, errors.New("not an argon2id hash")
	}
	var version int
	var memory, time uint32
	var threads uint8
	if _, err := fmt.Sscanf(parts[2], "v=%d", &version); err != nil || version != argon2.Version {
		return false, errors.New("unknown version of argon2id")
	}
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &memory, &time, &threads); err != nil {
		return false, fmt.Errorf("read parameters of argon2id: %w", err)
	}
	if memory < 8 || memory > 1<<20 || time < 1 || time > 64 || threads < 1 {
		return false, errors.New("parameters of argon2id out of range")
	}
	salt, err := base64.RawStdEncoding.DecodeString(parts[4])
	if err != nil {
		return false, fmt.Errorf("read salt: %w", err)
	}
	want, err := base64.RawStdEncoding.DecodeString(parts[5])
	if err != nil || len(want) == 0 {
		return false, errors.New("read hash: not base64")
	}
	got := argon2.IDKey([]byte(password), salt, time, memory, threads, uint32(len(want)))
	return subtle.ConstantTimeCompare(got, want) == 1, nil
}

// enter takes a place among the logins that run and wait, until leave is called. If all are taken it
// refuses with 503.
func (h *hasher) enter() (leave func(), err error) {
	select {
	case h.waiting <- struct{}{}:
		return func() { <-h.waiting }, nil
	default:
		return nil, &rest.Error{Status: http.StatusServiceUnavailable, Message: "too many logins at once; try again"}
	}
}

// check compares a password with a user's hash; with user nil it takes as long and says no. The caller has entered.
func (h *hasher) check(ctx context.Context, user *User, password string) (bool, error) {
	select {
	case h.turns <- struct{}{}:
		defer func() { <-h.turns }()
	case <-ctx.Done():
		return false, ctx.Err()
	}
	phc := h.dummy
	if user != nil {
		phc = user.Password
	}
	if len(password) > maxPasswordBytes {
		password = password[:maxPasswordBytes]
		user = nil
	}
	ok, err := verifyPassword(phc, password)
	if err != nil {
		return false, fmt.Errorf("check password: %w", err)
	}
	return ok && user != nil && user.Enabled, nil
}
