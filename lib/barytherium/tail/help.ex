defmodule Barytherium.Tail.Help do
  @moduledoc false
  # The text of `--help`, which is also the documentation of the Mix task.

  @text """
  Shows the messages of a STOMP broker as they arrive.

      COMMAND URL [DESTINATION...] [options]
      COMMAND [options]

  The URL is `stomp://user@host:port/queue/a`, or `stomp+ssl://` for TLS. Its path is the first
  destination, including the slash. Further destinations follow it. The port defaults to 61613, with TLS
  to 61614. The virtual host is `/`; `?host=name` changes it.

      COMMAND stomp://guest:guest@localhost/queue/a
      COMMAND stomp://me@broker/topic/a /topic/b --header "selector:price > 10"
      COMMAND "stomp://me@broker/topic/trains.#" --count 10
      COMMAND stomp://me@broker/queue/a --format json | jq .headers
      COMMAND stomp://me@broker/queue/a --count 1 --format raw > body

  Without a URL it shows a feed that it makes itself, for 10 seconds.

  ## What happens to the messages

  A topic (`/topic/...`, `/exchange/...`) sends a copy: nobody notices. A queue of ActiveMQ Classic is browsed,
  once a second: its messages stay where they are, and what was not there before is shown. ActiveMQ shows the
  first 400 messages of a queue so.

  Messages of any other queue are delivered to this program, and given back when it ends: other clients do not get
  them until then. Brokers count deliveries, and some discard a message, or move it to a dead-letter queue, that was
  delivered too often. So no more messages are taken than are shown: `--count`, or 20. `--ack` acknowledges them, which
  removes them from their queue; then they are shown without end.

    * `--ack` - acknowledge messages
    * `--header NAME:VALUE` - a header for SUBSCRIBE, such as a selector. Can be repeated
    * `--count N` - end after N messages
    * `--seconds N` - end after N seconds

  ## Output

  Messages go to stdout, everything else to stderr.

    * `--format pretty` - headers and body, for people. Gzip is inflated, JSON and XML are indented, and
      what is not text is shown as `xxd` shows it. Control characters are escaped. At most 4096 bytes of a text
      and 512 of a binary are shown. Of a topic, or with `--ack`, at most 5 messages a
      second are shown on a terminal; the others are counted. This is the default
    * `--format json` - one JSON object a line: `time`, `headers`, and `body`, or `body_base64` if the
      body is not text. Of repeated headers it has the first. Gzip is inflated, which `"gzip":true` tells
    * `--format raw` - the bytes of the bodies as they came, and nothing between them
    * `--all` - with `pretty`: show all messages, and all of each
    * `--save FILE` - also append all messages to FILE, shown or not, as objects like those of `json`. Their
      bodies are always `body_base64`, and are not inflated

    * `--trace` - also all frames on stderr, one a line: `>` is sent, `<` is received. Of CONNECT no values are shown
      that could be credentials, and of bodies only how many bytes they have

  On a terminal the last line has the current rates, and there are colours unless `NO_COLOR` is set.

  ## Connecting

  If the URL has a user and no password, the password is read from the environment's `STOMP_PASSCODE`. If
  that is not set, it is asked for. A password in the URL can be seen by other users of the machine.

  If the connection is lost, it is made again. The first one has to succeed.

    * `--cacertfile FILE` - CA certificates to trust with `stomp+ssl`, instead of the system's
    * `--certfile FILE`, `--keyfile FILE` - a client's certificate and its key
    * `--insecure` - do not verify the server with `stomp+ssl`
    * `--rate N`, `--size N` - of the feed without a URL: messages a second (default: 20000), and bytes of
      each (default: 256)

  ## How it ends

  Ctrl-C and SIGTERM unsubscribe, disconnect and say how much came. A second one ends it at once. In
  a pipe, Ctrl-C ends the other programs with SIGQUIT, and the shell may say `Quit`. The exit status is

    * 0 - after `--count` or `--seconds`, or when nobody reads the output any more
    * 1 - it could not connect or subscribe, or not write to FILE
    * 2 - the command line is wrong
    * 130 - after Ctrl-C
    * 143 - after SIGTERM
  """

  @doc "The text, with the name of the command."
  @spec text(String.t()) :: String.t()
  def text(command), do: String.replace(@text, "COMMAND", command)
end
