defmodule Barytherium.TestBroker.Replay do
  @moduledoc false
  # Plays a recording to one subscription, in a process that ends with the connection. A message goes to a subscription
  # of its destination.

  alias Barytherium.{Frame, Recording}
  alias Barytherium.TestBroker.Session

  # Messages that are handed to the connection together, if it is to be as fast as it can.
  @together 256

  @typedoc "How many times as fast as it was, or `:infinity`, without waiting."
  @type speed :: pos_integer() | float() | :infinity
  @type options :: %{path: Path.t(), speed: speed(), from: DateTime.t() | Recording.time()}

  @doc "The broker that the recording is from, if it is one that can be imitated."
  @spec like(Path.t()) :: Session.like()
  def like(path) do
    with [{_time, %Frame{command: :connected} = frame}] <-
           path |> Recording.stream() |> Enum.take(1) do
      case Frame.header(frame, "server") do
        "RabbitMQ" <> _version -> :rabbitmq
        "ActiveMQ/" <> _version -> :activemq
        _other -> nil
      end
    else
      _empty -> nil
    end
  end

  @doc "Plays to the subscription `id` of the connection that calls this. `write` gets its messages."
  @spec start(binary(), binary(), options(), ([Session.action()] -> :ok)) :: pid()
  def start(id, destination, options, write),
    do: spawn_link(fn -> play(write, id, destination, options) end)

  @spec stop(pid()) :: true
  def stop(replay) do
    Process.unlink(replay)
    Process.exit(replay, :kill)
  end

  defp play(write, id, destination, %{path: path, from: from, speed: speed}) do
    path
    |> Recording.stream(from)
    |> Stream.filter(fn {_time, frame} -> Frame.header(frame, "destination") == destination end)
    |> Stream.chunk_every(if(speed == :infinity, do: @together, else: 1))
    |> Enum.reduce(nil, fn [{time, _frame} | _] = entries, clock ->
      clock = clock || {time, System.monotonic_time(:microsecond)}
      await(time, clock, speed)
      :ok = write.(for({_time, frame} <- entries, do: action(frame, id)))
      clock
    end)
  end

  defp await(_time, _clock, :infinity), do: :ok

  defp await(time, {first, started}, speed) do
    due = started + round((time - first) / speed)
    left = due - System.monotonic_time(:microsecond)
    # A timer is not early, and up to a millisecond late.
    if left > 0, do: Process.sleep(div(left, 1_000))
  end

  defp action(%Frame{headers: headers} = frame, id) do
    headers = List.keyreplace(headers, "subscription", 0, {"subscription", id})
    {:frame, :message, headers, frame.body}
  end
end
