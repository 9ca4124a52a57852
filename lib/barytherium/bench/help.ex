defmodule Barytherium.Bench.Help do
  @moduledoc false
  # The text of `--help`, which is also the documentation of the Mix task.

  @text """
  Measures how many messages a STOMP broker takes and delivers, and how long they take.

      COMMAND [URL] [options]

  Without a URL it measures a broker in this VM. The URL is `stomp://user@host:port/queue/a`, or `stomp+ssl://` for
  TLS. Its path is the beginning of the queues' names, which are `/queue/barytherium-bench-...` without one. Each
  connection that publishes has its own queue, and a connection that consumes it. What it has published it consumes,
  and nothing else.

      COMMAND stomp://guest:guest@localhost --connections 4 --size 1500
      COMMAND stomp://guest:guest@localhost --rate 5000 --seconds 60 --json

    * `--rate N` - messages a second, of all connections together. A message carries the time when it was due, so a
      broker that falls behind is seen in the latency. Without a rate there is no latency, but the highest rate
    * `--seconds N` - how long to publish. Default: 10
    * `--size N` - bytes of a body, at least 8. Default: 256
    * `--connections N` - that publish, and as many that consume. Default: 1
    * `--ack MODE` - `auto`, `client` or `client-individual`. Default: auto
    * `--no-persistent` - without the header `persistent:true`

  ## Output

  A table; with `--json` an object. `--svg FILE` also draws the messages of each second. Latencies are up to 6 % too
  large, except the largest. After Ctrl-C or SIGTERM it tells what it has measured by then.

  RabbitMQ deletes the queues when they were not used for a minute. On other brokers they stay, and are empty.

  ## Connecting

  If the URL has a user and no password, the password is read from the environment's `STOMP_PASSCODE`. If
  that is not set, it is asked for.

    * `--cacertfile FILE` - CA certificates to trust with `stomp+ssl`, instead of the system's
    * `--certfile FILE`, `--keyfile FILE` - a client's certificate and its key
    * `--insecure` - do not verify the server with `stomp+ssl`

  The exit status is 0; 1 if the broker could not be reached or has not delivered all; 2 if the command line is
  wrong; 130 after Ctrl-C; 143 after SIGTERM.
  """

  @doc "The text, with the name of the command."
  @spec text(String.t()) :: String.t()
  def text(command), do: String.replace(@text, "COMMAND", command)
end
