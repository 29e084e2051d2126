package rig

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/config"

	"github.com/lockstep-dr/lockstep/client"
)

// askWithin bounds one call at one controller.
const askWithin = 8 * time.Second

// API is the controllers of a deployment as their users see it: several addresses, of which any may
// answer. It is safe for concurrent use.
type API struct {
	URLs     []string // of the controllers
	Password string   // of the user admin
	// Dial connects, from where the users are; nil: from here.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	mu      sync.Mutex
	clients map[string]*client.Client
	first   int // the one that answered last
}

// Ask makes a call at one controller after the other until one answers, if only to refuse.
func (a *API) Ask(ctx context.Context, call func(context.Context, *client.Client) error) error {
	a.mu.Lock()
	first := a.first
	a.mu.Unlock()
	var errs []error
	for i := range a.URLs {
		at := (first + i) % len(a.URLs)
		err := a.at(ctx, a.URLs[at], call)
		var refused *client.Error
		if err == nil || errors.As(err, &refused) && refused.Status != http.StatusServiceUnavailable {
			a.mu.Lock()
			a.first = at
			a.mu.Unlock()
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (a *API) at(ctx context.Context, url string, call func(context.Context, *client.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	a.mu.Lock()
	c := a.clients[url]
	a.mu.Unlock()
	if c == nil {
		var err error
		if c, err = a.logIn(ctx, url); err != nil {
			return err
		}
		a.mu.Lock()
		if a.clients == nil {
			a.clients = map[string]*client.Client{}
		}
		a.clients[url] = c
		a.mu.Unlock()
	}
	return call(ctx, c)
}

// logIn is client.DialWith with connections that are made elsewhere.
func (a *API) logIn(ctx context.Context, url string) (*client.Client, error) {
	dial := a.Dial
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	auth := client.PasswordAuth(url+"/identity/v3", "admin", a.Password, "Default", "admin")
	auth.AllowReauth = true
	provider, err := config.NewProviderClient(ctx, auth, config.WithHTTPClient(http.Client{
		Timeout: askWithin,
		Transport: &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, time.Second) // a host that is cut off never answers
			defer cancel()
			return dial(ctx, network, address)
		}},
	}))
	if err != nil {
		return nil, fmt.Errorf("log in at %s: %w", url, err)
	}
	endpoint, err := provider.EndpointLocator(gophercloud.EndpointOpts{Type: client.ServiceType, Availability: gophercloud.AvailabilityPublic})
	if err != nil {
		return nil, err
	}
	return client.New(&gophercloud.ServiceClient{ProviderClient: provider, Endpoint: endpoint, Type: client.ServiceType}), nil
}
