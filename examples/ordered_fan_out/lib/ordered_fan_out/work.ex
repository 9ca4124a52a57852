defmodule OrderedFanOut.Work do
  @moduledoc "The work for a message: it takes as many milliseconds as the body says."

  @spec run(binary()) :: :ok
  def run(body) do
    body |> String.to_integer() |> Process.sleep()
    IO.puts("done: #{body}")
  end
end
