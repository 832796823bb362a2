// Package backup tests shards that are backed up by the real pgBackRest: the repository is
// on a host of its own, which every database host reaches over TLS. Replicas, members that
// are made anew and new shards come out of the repository; and a repository that is lost,
// is somebody else's or does not answer stops nobody.
package backup
