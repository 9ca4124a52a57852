defmodule Barytherium.Consumer.Workers do
  @moduledoc false
  # Several `Barytherium.Consumer.Worker`s, started by a process that ends with them and they with it.

  alias Barytherium.Consumer.Worker

  @typedoc "Of the process that has started them."
  @type state :: %{
          required(:client) => pid(),
          required(:workers) => [pid()],
          required(:finishing?) => boolean(),
          optional(atom()) => term()
        }

  @doc "Starts them, linked to the calling process, for `client`. `:first`: `init/1` of all has returned then."
  @spec start(:first | :again, pid(), map()) :: {:ok, [pid(), ...]} | {:error, term()}
  def start(how, client, settings) do
    # The caller is told when one ends. They do not trap exits, so they end with it.
    Process.flag(:trap_exit, true)
    # See `Barytherium.Network.start_link/4`.
    Process.link(client)
    start(how, settings.handlers, client, settings, [])
  end

  defp start(:again, count, client, settings, []),
    do:
      {:ok, for(number <- 1..count, do: Worker.start_again(client, %{settings | number: number}))}

  defp start(:first, 0, _client, _settings, workers), do: {:ok, workers}

  defp start(:first, count, client, settings, workers) do
    with {:ok, pid} <- Worker.start_link(client, %{settings | number: count}),
         do: start(:first, count - 1, client, settings, [pid | workers])
  end

  @doc "Whether the end of `pid` concerns them. One that ends normally ends no other, unless that depends on it."
  @spec ours?(pid(), term(), state()) :: boolean()
  def ours?(pid, reason, %{client: client, workers: workers}),
    do: reason != :normal or pid in [client | workers]

  @doc "What follows from the end of a worker, or of the client. A worker that ends has logged why."
  @spec ended(pid(), term(), state()) :: {:noreply, state()} | {:stop, term(), state()}
  def ended(pid, :shutdown, %{finishing?: true, workers: workers} = state) do
    case List.delete(workers, pid) do
      [] -> {:stop, :shutdown, %{state | workers: []}}
      workers -> {:noreply, %{state | workers: workers}}
    end
  end

  def ended(_pid, {:shutdown, _why} = reason, state), do: {:stop, reason, state}
  def ended(_pid, _reason, state), do: {:stop, {:shutdown, :handler}, state}

  @spec kill([pid()]) :: :ok
  def kill(workers), do: Enum.each(workers, &Process.exit(&1, :kill))
end
