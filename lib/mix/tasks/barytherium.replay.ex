defmodule Mix.Tasks.Barytherium.Replay do
  @shortdoc "Plays a recording as a STOMP broker"
  @moduledoc Barytherium.Tail.CommandLine.documentation(
               "mix barytherium.replay",
               Barytherium.Replay.Help
             )
  use Mix.Task

  @impl true
  def run(argv), do: Barytherium.MixTask.run(Barytherium.Replay, argv, "mix barytherium.replay")
end
