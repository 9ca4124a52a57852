defmodule Bench.Publishers do
  @moduledoc """
  One process that publishes messages of 256 bytes:

    * `:publish_many` - in lists of 256, each of which it waits for;
    * `:lists` - the same lists without waiting;
    * `:singly` - each message in a call of its own, without waiting.
  """

  alias Barytherium.Client

  @list List.duplicate({"/queue/a", String.duplicate("x", 256)}, 256)

  @doc "Confirmed messages a second, over `time` milliseconds. With `spool: true` they are kept in files."
  def measure(how, port, time, opts \\ []) do
    directory = Path.join(System.tmp_dir!(), "barytherium-bench-spool-#{System.pid()}")
    opts = if opts[:spool], do: [spool: directory], else: []
    {:ok, client} = Client.start_link([url: "stomp://127.0.0.1:#{port}"] ++ opts)
    # It is connected then.
    :ok = Client.publish(client, "/queue/a", "", wait: true)
    until(how, client, System.monotonic_time(:millisecond) + div(time, 4), 0)
    :ok = Client.flush(client)
    started = System.monotonic_time(:microsecond)
    count = until(how, client, System.monotonic_time(:millisecond) + time, 0)
    :ok = Client.flush(client)
    passed = System.monotonic_time(:microsecond) - started
    Client.close(client, 0)
    File.rm_rf!(directory)
    count * 1_000_000 / passed
  end

  defp until(how, client, end_, count) do
    if System.monotonic_time(:millisecond) < end_,
      do: until(how, client, end_, count + publish(how, client)),
      else: count
  end

  defp publish(:publish_many, client) do
    :ok = Client.publish_many(client, @list)
    256
  end

  defp publish(:lists, client) do
    {:ok, _reference} = Client.publish_many_async(client, @list, to: :nobody)
    256
  end

  defp publish(:singly, client) do
    for {destination, body} <- Enum.take(@list, 16) do
      {:ok, _reference} = Client.publish_async(client, destination, body, to: :nobody)
    end

    16
  end
end
