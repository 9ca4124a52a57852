defmodule Barytherium.Record.Help do
  @moduledoc false
  # The text of `--help`, which is also the documentation of the Mix task.

  @text """
  Records what a destination of a STOMP broker gets, with times, until it is ended.

      COMMAND URL FILE [options]

  The URL is `stomp://user@host:port/topic/a`, or `stomp+ssl://` for TLS. Its path is the destination, including
  the slash. The port defaults to 61613, with TLS to 61614. The virtual host is `/`; `?host=name` changes it.

      COMMAND stomp://me@broker/topic/a feed.rec
      COMMAND stomp+ssl://me@broker/topic/a feed.rec --seconds 3600

  A recording that exists is continued, in another file: `feed.rec`, `feed.2.rec`, `feed.3.rec`. REPLAY plays it, and so does `Barytherium.TestBroker`
  with `replay: "feed.rec"`. `Barytherium.Recording` reads it, and says what is in the file.

  A topic sends a copy: nobody notices. The messages of a queue are removed from it, each when it is in the file.

    * `--header NAME:VALUE` - a header for SUBSCRIBE, such as a selector. Can be repeated
    * `--file-size N` - after N MiB go on in another file. Default: 1024
    * `--count N` - end after N messages
    * `--seconds N` - end after N seconds

  What is in the file survives a kill of the program. If the machine crashes, at most the last second is lost. Only what
  comes from the broker is recorded, so there are no passwords in it.

  ## Connecting

  If the URL has a user and no password, the password is read from the environment's `STOMP_PASSCODE`. If
  that is not set, it is asked for. A password in the URL can be seen by other users of the machine.

  If the connection is lost, it is made again. The first one has to succeed. A topic's messages are missed meanwhile.

    * `--cacertfile FILE` - CA certificates to trust with `stomp+ssl`, instead of the system's
    * `--certfile FILE`, `--keyfile FILE` - a client's certificate and its key
    * `--insecure` - do not verify the server with `stomp+ssl`

  ## How it ends

  Ctrl-C and SIGTERM disconnect, and say how much came. The exit status is

    * 0 - after `--count` or `--seconds`
    * 1 - it could not connect or subscribe, or not write to FILE
    * 2 - the command line is wrong
    * 130 - after Ctrl-C
    * 143 - after SIGTERM
  """

  @doc "The text, with the name of the command."
  @spec text(String.t()) :: String.t()
  def text(command) do
    @text
    |> String.replace("COMMAND", command)
    |> String.replace("REPLAY", "`#{String.replace(command, "record", "replay")}`")
  end
end
