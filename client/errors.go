package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/gophercloud/gophercloud/v2"
)

// ErrUnreachable means that no HTTP answer came; a change that was asked for may or may not have happened.
var ErrUnreachable = errors.New("the API cannot be reached")

// Error is a refusal by the server.
type Error struct {
	Status    int    // of HTTP
	Message   string // of the fault body, or the status text
	RequestID string // the same id stands in the server's log
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%s (HTTP %d", e.Message, e.Status)
	if e.RequestID != "" {
		s += ", request " + e.RequestID
	}
	return s + ")"
}

// IsNotFound reports whether the server said that the thing does not exist.
func IsNotFound(err error) bool { return hasStatus(err, http.StatusNotFound) }

// IsConflict reports whether the server refused because of the thing's status.
func IsConflict(err error) bool { return hasStatus(err, http.StatusConflict) }

// IsForbidden reports whether the server said that the token is not enough.
func IsForbidden(err error) bool { return hasStatus(err, http.StatusForbidden) }

func hasStatus(err error, status int) bool {
	var e *Error
	return errors.As(err, &e) && e.Status == status
}

// translate turns gophercloud's errors into ours; others come back unchanged.
func translate(err error) error {
	var code gophercloud.ErrUnexpectedResponseCode
	if errors.As(err, &code) {
		id := code.ResponseHeader.Get("x-openstack-request-id")
		if id == "" {
			id = code.ResponseHeader.Get("X-Request-Id")
		}
		return &Error{Status: code.Actual, Message: faultMessage(code.Actual, code.Body), RequestID: id}
	}
	if errors.Is(err, context.Canceled) {
		return err
	}
	var transport *url.Error
	if errors.As(err, &transport) {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	return err
}

// faultMessage reads the message out of the OpenStack fault form, {"badRequest": {"message": …}},
// whatever the outer key is, and out of Keystone's and the vendor's {"error": {…}}.
func faultMessage(status int, body []byte) string {
	var fault map[string]struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(body, &fault) == nil {
		for _, f := range fault {
			if f.Message != "" {
				return f.Message
			}
		}
	}
	if text := strings.TrimSpace(string(body)); text != "" && len(text) < 300 && !strings.HasPrefix(text, "<") {
		return text
	}
	return http.StatusText(status)
}

func projectOfEndpoint(endpoint string) (string, error) {
	parts := strings.Split(strings.Trim(endpoint, "/"), "/")
	id := parts[len(parts)-1]
	if id == "" || strings.Contains(id, ":") || id == "v2" {
		return "", fmt.Errorf("the endpoint %s carries no project id", endpoint)
	}
	return id, nil
}
