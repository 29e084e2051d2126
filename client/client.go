package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/config"
	"github.com/gophercloud/gophercloud/v2/openstack/config/clouds"
)

// ServiceType is the catalog's type of the service that carries these calls.
const ServiceType = "volumev2"

// requestTimeout bounds one HTTP exchange. The server may hold an extend or a stop until it has
// been carried out, so it is generous.
const requestTimeout = 90 * time.Second

// Client calls one project's API. It is safe for concurrent use.
type Client struct {
	sc     *gophercloud.ServiceClient
	region string // of the endpoint; "" for any
}

// Options say where the credentials come from. Empty fields fall back to the environment.
type Options struct {
	Cloud      string // name in clouds.yaml; default OS_CLOUD
	CloudsFile string // path of clouds.yaml; default OS_CLIENT_CONFIG_FILE and the usual places
	Region     string // default: the cloud's, or OS_REGION_NAME
	UserAgent  string // put before gophercloud's own
}

// ErrNoCredentials means that neither a cloud nor the OS_ variables were given.
var ErrNoCredentials = errors.New("no credentials: source an openrc (OS_AUTH_URL and the other OS_ variables), or name a cloud of clouds.yaml with --os-cloud or OS_CLOUD")

// ErrClouds means that a cloud was named and clouds.yaml, or that cloud in it, could not be read.
var ErrClouds = errors.New("clouds.yaml")

// Dial logs in and finds the service's endpoint in the catalog. The token is renewed when it has
// run out.
func Dial(ctx context.Context, o Options) (*Client, error) {
	auth, endpoint, tlsConfig, err := credentials(o)
	if err != nil {
		return nil, err
	}
	return DialWith(ctx, auth, endpoint, tlsConfig, o.UserAgent)
}

// DialWith is Dial with credentials that the caller has found. tlsConfig may be nil.
func DialWith(ctx context.Context, auth gophercloud.AuthOptions, endpoint gophercloud.EndpointOpts, tlsConfig *tls.Config, userAgent string) (*Client, error) {
	auth.AllowReauth = true
	provider, err := config.NewProviderClient(ctx, auth,
		config.WithHTTPClient(http.Client{Timeout: requestTimeout}), config.WithTLSConfig(tlsConfig))
	if err != nil {
		return nil, fmt.Errorf("log in at %s: %w", auth.IdentityEndpoint, translate(err))
	}
	if userAgent != "" {
		provider.UserAgent.Prepend(userAgent)
	}
	endpoint.Type = ServiceType
	// ApplyDefaults would replace the type by the official name and ask the server for its
	// versions; the catalog's entry is exact, so the type alone is enough.
	endpoint.Availability = gophercloud.AvailabilityPublic
	url, err := provider.EndpointLocator(endpoint)
	if err != nil {
		return nil, fmt.Errorf("find %s of region %q in the catalog: %w", ServiceType, endpoint.Region, err)
	}
	c := New(&gophercloud.ServiceClient{ProviderClient: provider, Endpoint: url, Type: ServiceType})
	c.region = endpoint.Region
	return c, nil
}

// New wraps a service client whose endpoint ends in /v2/{project_id}/.
func New(sc *gophercloud.ServiceClient) *Client { return &Client{sc: sc} }

// Endpoint is the base URL that all paths are appended to; it ends in a slash.
func (c *Client) Endpoint() string { return c.sc.Endpoint }

// ProjectID is the project that the endpoint is for: the one the token is scoped to.
func (c *Client) ProjectID() (string, error) {
	return projectOfEndpoint(c.sc.Endpoint)
}

func credentials(o Options) (gophercloud.AuthOptions, gophercloud.EndpointOpts, *tls.Config, error) {
	cloud := o.Cloud
	if cloud == "" {
		cloud = os.Getenv("OS_CLOUD")
	}
	if cloud == "" && o.CloudsFile != "" {
		cloud = "lockstep"
	}
	if cloud != "" {
		opts := []clouds.ParseOption{clouds.WithCloudName(cloud)}
		if o.CloudsFile != "" {
			opts = append(opts, clouds.WithLocations(o.CloudsFile))
		}
		if o.Region != "" {
			opts = append(opts, clouds.WithRegion(o.Region))
		}
		auth, endpoint, tlsConfig, err := clouds.Parse(opts...)
		if err != nil {
			return auth, endpoint, nil, fmt.Errorf("%w: read cloud %q: %w", ErrClouds, cloud, err)
		}
		return auth, endpoint, tlsConfig, nil
	}
	return fromEnvironment(o, os.Getenv)
}

// fromEnvironment reads the variables of an openrc. gophercloud's own reader wants OS_DOMAIN_ID
// or OS_DOMAIN_NAME, which other clients refuse beside a project; the two variables that separate
// the user's domain from the project's are what a v3 openrc holds.
func fromEnvironment(o Options, env func(string) string) (gophercloud.AuthOptions, gophercloud.EndpointOpts, *tls.Config, error) {
	first := func(names ...string) string {
		for _, n := range names {
			if v := env(n); v != "" {
				return v
			}
		}
		return ""
	}
	auth := gophercloud.AuthOptions{
		IdentityEndpoint:            env("OS_AUTH_URL"),
		Username:                    env("OS_USERNAME"),
		UserID:                      env("OS_USER_ID"),
		Password:                    env("OS_PASSWORD"),
		TokenID:                     env("OS_TOKEN"),
		ApplicationCredentialID:     env("OS_APPLICATION_CREDENTIAL_ID"),
		ApplicationCredentialName:   env("OS_APPLICATION_CREDENTIAL_NAME"),
		ApplicationCredentialSecret: env("OS_APPLICATION_CREDENTIAL_SECRET"),
	}
	if auth.IdentityEndpoint == "" {
		return auth, gophercloud.EndpointOpts{}, nil, ErrNoCredentials
	}
	if auth.Password == "" && auth.TokenID == "" && auth.ApplicationCredentialSecret == "" {
		return auth, gophercloud.EndpointOpts{}, nil, fmt.Errorf("%w: OS_PASSWORD is not set", ErrNoCredentials)
	}
	if auth.TokenID == "" && auth.Username == "" && auth.UserID == "" && auth.ApplicationCredentialSecret == "" {
		return auth, gophercloud.EndpointOpts{}, nil, fmt.Errorf("%w: OS_USERNAME is not set", ErrNoCredentials)
	}
	if auth.UserID == "" && auth.Username != "" {
		auth.DomainID = first("OS_USER_DOMAIN_ID", "OS_DOMAIN_ID")
		if auth.DomainID == "" {
			auth.DomainName = first("OS_USER_DOMAIN_NAME", "OS_DOMAIN_NAME")
		}
		if auth.DomainID == "" && auth.DomainName == "" {
			auth.DomainID = "default"
		}
	}
	switch id, name := first("OS_PROJECT_ID", "OS_TENANT_ID"), first("OS_PROJECT_NAME", "OS_TENANT_NAME"); {
	case auth.ApplicationCredentialSecret != "":
		// An application credential carries its own scope.
	case id != "":
		auth.Scope = &gophercloud.AuthScope{ProjectID: id}
	case name != "":
		scope := &gophercloud.AuthScope{ProjectName: name}
		if scope.DomainID = first("OS_PROJECT_DOMAIN_ID", "OS_DOMAIN_ID"); scope.DomainID == "" {
			scope.DomainName = first("OS_PROJECT_DOMAIN_NAME", "OS_DOMAIN_NAME")
		}
		if scope.DomainID == "" && scope.DomainName == "" {
			scope.DomainID = "default"
		}
		auth.Scope = scope
	}
	region := o.Region
	if region == "" {
		region = env("OS_REGION_NAME")
	}
	return auth, gophercloud.EndpointOpts{Region: region}, nil, nil
}

// AnyRegion takes the endpoint of whatever region the catalog has.
var AnyRegion = gophercloud.EndpointOpts{}

// PasswordAuth is a log-in by names: the user's and the project's domain are the same one.
func PasswordAuth(url, user, password, domain, project string) gophercloud.AuthOptions {
	return gophercloud.AuthOptions{
		IdentityEndpoint: url, Username: user, Password: password, DomainName: domain,
		Scope: &gophercloud.AuthScope{ProjectName: project, DomainName: domain},
	}
}
