// Gives MongoDB the roles and users with which workers and functions may do what they do and nothing else. What is there already is made so
// again: run it again after an upgrade. As a user administrator:
//
//   FLEETCRON_WORKER_PASSWORD=… FLEETCRON_API_PASSWORD=… mongosh "mongodb://admin@HOST/?tls=true&tlsCAFile=ca.pem" infra/mongodb-roles.js
//
// A user whose variable is not set is left as it is, and not made.
const fleet = db.getSiblingDB('cron');

const on = (collection, ...actions) => ({ resource: { db: 'cron', collection }, actions });
const roles = {
  // Records, what runs print, indexes, what is known of changes; and what is too old goes.
  'fleetcron-worker': [
    on('log', 'find', 'insert', 'update', 'remove', 'createIndex', 'dropIndex'),
    on('log_conflicts', 'find', 'insert', 'update'),
    on('output', 'find', 'insert', 'update', 'remove', 'createIndex'),
    on('audit', 'find', 'insert', 'remove', 'createIndex'),
    on('versions', 'find', 'insert', 'remove', 'createIndex'),
  ],
  // The functions log, get and output read; versions, rollback and audit_list also keep what waits in etcd. None removes anything.
  'fleetcron-api': [
    on('log', 'find'),
    on('output', 'find'),
    on('audit', 'find', 'insert'),
    on('versions', 'find', 'insert'),
  ],
};

for (const [name, privileges] of Object.entries(roles)) {
  if (fleet.getRole(name) === null) {
    fleet.createRole({ role: name, privileges, roles: [] });
    print(`${name}: role made`);
  } else {
    fleet.updateRole(name, { privileges, roles: [] });
    print(`${name}: role set`);
  }
  const variable = `${name.replace('fleetcron-', 'FLEETCRON_').toUpperCase()}_PASSWORD`;
  const pwd = process.env[variable];
  const own = [{ role: name, db: 'cron' }];
  if (!pwd) {
    print(`${variable} is not set: no user is made, and one that is there stays as it is`);
  } else if (fleet.getUser(name) === null) {
    fleet.createUser({ user: name, pwd, roles: own });
    print(`${name}: user made`);
  } else {
    fleet.updateUser(name, { pwd, roles: own });
    print(`${name}: user has its role alone, and this password`);
  }
}
