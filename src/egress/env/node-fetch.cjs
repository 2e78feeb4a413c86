// Made by belljar: leads fetch to the proxy of this sandbox where Node knows of no proxies (before 22.21 and 24).
// Nothing is loaded until fetch is called, and a dispatcher that a program sets is its own affair.
'use strict';
{
  const [major, minor] = process.versions.node.split('.').map(Number);
  const knows = major >= 24 || (major === 22 && minor >= 21);
  const proxy = process.env.https_proxy || process.env.HTTPS_PROXY;
  if (!knows && proxy && typeof globalThis.fetch === 'function') lead(new URL(proxy));
}

function lead(proxy) {
  const own = globalThis.fetch;
  let led = false;
  const fetch = function fetch(input, init) {
    if (!led) {
      led = true;
      setDispatcher(proxy);
    }
    return own.call(this, input, init);
  };
  const found = Object.getOwnPropertyDescriptor(globalThis, 'fetch');
  Object.defineProperty(globalThis, 'fetch', {
    value: fetch,
    writable: true,
    configurable: true,
    enumerable: found ? found.enumerable : true,
  });
}

// The symbol by which all copies of undici share one dispatcher; what Node itself puts there is an Agent.
function setDispatcher(proxy) {
  const shared = Symbol.for('undici.globalDispatcher.1');
  void globalThis.Response;
  const plain = globalThis[shared];
  if (!plain || plain.constructor.name !== 'Agent') return;
  const net = require('node:net');
  const tls = require('node:tls');
  const http = require('node:http');
  const isLocal = (host) => /^(localhost|127(\.\d+){3}|\[?::1\]?)$/.test(host);
  const bare = (host) => host.replace(/^\[|\]$/g, '');

  // Connections of the agent: to the proxy itself, to the sandbox's own loopback, and through a tunnel.
  const connect = (options, done) => {
    const host = bare(options.hostname);
    const port = Number(options.port) || (options.protocol === 'https:' ? 443 : 80);
    let said = false;
    const say = (error, socket) => {
      if (!said) {
        said = true;
        done(error, socket);
      }
    };
    const secure = (socket) => {
      const servername = options.servername || (net.isIP(host) ? undefined : host);
      const over = socket ? { socket } : { host, port };
      const secured = tls.connect({ ...over, servername, ALPNProtocols: ['http/1.1'] });
      secured.once('error', (error) => say(error));
      secured.once('secureConnect', () => say(null, secured));
    };
    if (options.protocol !== 'https:') {
      const socket = net.connect({ host, port });
      socket.once('error', (error) => say(error));
      socket.once('connect', () => say(null, socket));
    } else if (isLocal(options.hostname)) {
      secure(null);
    } else {
      const place = `${options.hostname}:${port}`;
      const asked = http.request({
        host: bare(proxy.hostname),
        port: proxy.port,
        method: 'CONNECT',
        path: place,
        headers: { host: place },
        agent: false,
      });
      asked.once('error', (error) => say(error));
      asked.once('connect', (answer, socket, head) => {
        if (answer.statusCode === 200) return secure(socket);
        // A refusal has a body that says why.
        let why = head.toString();
        socket.setEncoding('utf8').on('data', (text) => (why += text));
        socket.once('close', () => say(new Error(`the proxy answers ${answer.statusCode}: ${why.trim()}`)));
      });
      asked.end();
    }
  };

  class ThroughProxy extends plain.constructor {
    dispatch(options, handler) {
      const origin = new URL(options.origin);
      if (origin.protocol !== 'http:' || isLocal(origin.hostname)) return super.dispatch(options, handler);
      // Plain requests are asked of the proxy as whole URLs.
      const headers = Array.isArray(options.headers)
        ? [...options.headers, 'host', origin.host]
        : { ...options.headers, host: origin.host };
      return super.dispatch({ ...options, headers, origin: proxy.origin, path: origin.origin + options.path }, handler);
    }
  }
  Object.defineProperty(globalThis, shared, {
    value: new ThroughProxy({ connect }),
    writable: true,
    enumerable: false,
    configurable: false,
  });
}
