defmodule Barytherium.Send.Help do
  @moduledoc false
  # The text of `--help`, which is also the documentation of the Mix task.

  @text """
  Sends messages to a STOMP broker, and waits until it has confirmed them.

      COMMAND URL BODY [options]
      COMMAND URL - [options]
      COMMAND URL @FILE [options]
      COMMAND URL --lines [options]

  The URL is `stomp://user@host:port/queue/a`, or `stomp+ssl://` for TLS. Its path is the destination, including
  the slash. The port defaults to 61613, with TLS to 61614. The virtual host is `/`; `?host=name` changes it.

      COMMAND stomp://guest:guest@localhost/queue/a "hello"
      COMMAND stomp://me@broker/topic/a @message.json --content-type application/json
      tail -f log | COMMAND stomp://me@broker/queue/log --lines
      COMMAND stomp://me@broker/queue/a - --gzip --header "priority:9" < message.xml

  ## What is sent

  BODY is a text, `-` for all of stdin, or `@FILE` for the bytes of a file.

    * `--lines` - a message for each line of stdin, without its line end
    * `--header NAME:VALUE` - a header. Can be repeated
    * `--content-type TYPE` - the header `content-type`
    * `--gzip` - compress each body, and say so in the header `content-encoding`
    * `--persistent` - with the header `persistent:true`, without which brokers forget a message when they are
      started again. This is the default; `--no-persistent` leaves it out
    * `--count N` - send BODY N times
    * `--rate N` - no more than N messages a second

  ## Connecting

  If the URL has a user and no password, the password is read from the environment's `STOMP_PASSCODE`. If
  that is not set, it is asked for. A password in the URL can be seen by other users of the machine.

    * `--cacertfile FILE` - CA certificates to trust with `stomp+ssl`, instead of the system's
    * `--certfile FILE`, `--keyfile FILE` - a client's certificate and its key
    * `--insecure` - do not verify the server with `stomp+ssl`

  ## How it ends

  The exit status is

    * 0 - the broker has confirmed all messages
    * 1 - it has not: it could not be reached, has refused a message, or the connection has ended. How many it has
      confirmed is said
    * 2 - the command line is wrong
    * 130 - after Ctrl-C
    * 143 - after SIGTERM
  """

  @doc "The text, with the name of the command."
  @spec text(String.t()) :: String.t()
  def text(command), do: String.replace(@text, "COMMAND", command)
end
