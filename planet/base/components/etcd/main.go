// Command etcd is the etcd server. Its own module has replace directives, with
// which the Go client refuses to install it, so this module requires it.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() {
	etcdmain.Main(os.Args)
}
