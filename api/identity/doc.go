// Package identity is the part of Keystone v3 that clients of the API need: password and token
// and application credential logins, scopes, the service catalog, and users, projects, domains, role
// assignments and application credentials. Roles are fixed. Everything lives
// in the store, so that any controller can check a token that another one issued. It never keeps a
// password or a token in clear, and never logs one.
//
// Keys below identity/, values in the store's envelope:
//
//	bootstrap                      Bootstrapped, written once
//	domains/<id>                   Domain
//	projects/<id>                  Project
//	users/<id>                     User, with the password as an argon2id PHC string
//	names/project/<domain>/<hex>   id of the project with that name (hex of the name's bytes)
//	names/user/<domain>/<hex>      id of the user with that name
//	names/domain/<hex>             id of the domain with that name
//	roles/<user>/<target>          Assignment: roles of a user on a project or a domain
//	appcreds/<user>/<id>           AppCred, with the secret as an argon2id PHC string
//	appcredusers/<id>              id of the user who has that application credential
//	names/appcred/<user>/<hex>     id of the user's application credential with that name
//	tokens/<sha256>                Token, under the hash of what the client holds
package identity
