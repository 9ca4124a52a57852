defmodule Barytherium.Replay.Help do
  @moduledoc false
  # The text of `--help`, which is also the documentation of the Mix task.

  @text """
  Plays a recording, as a STOMP broker on the loopback interface.

      COMMAND FILE [options]

  FILE is the first file of a recording, see RECORD. Each subscription to a destination of
  the recording gets its messages, from the first one on, as long after each other as they were recorded. The broker takes
  any login, and behaves as `Barytherium.TestBroker` does.

      COMMAND feed.rec
      COMMAND feed.rec --speed 10 --from 2026-11-28T08:00:00Z

    * `--speed N` - N times as fast as it was, or `max`, as fast as the client takes it. Default: 1
    * `--from TIME` - leave out what came before this time
    * `--port N` - the port to listen on. Default: 61613

  ## How it ends

  With Ctrl-C or SIGTERM. The exit status is

    * 1 - FILE cannot be read, or the port is in use
    * 2 - the command line is wrong
    * 130 - after Ctrl-C
    * 143 - after SIGTERM
  """

  @doc "The text, with the name of the command."
  @spec text(String.t()) :: String.t()
  def text(command) do
    @text
    |> String.replace("COMMAND", command)
    |> String.replace("RECORD", "`#{String.replace(command, "replay", "record")}`")
  end
end
