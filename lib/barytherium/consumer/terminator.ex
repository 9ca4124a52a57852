defmodule Barytherium.Consumer.Terminator do
  @moduledoc false
  # The last child of a consumer's supervisor, so the first that is stopped. It stops all connections at
  # once, within one time: a supervisor would stop them one after the other.
  use GenServer

  # The part of the time that disconnecting may take, and its maximum in milliseconds. The rest is for the
  # messages that have arrived.
  @farewell_part 4
  @longest_farewell 5_000

  # Milliseconds of the time that are left for the answers.
  @margin 200

  @doc "Starts it for the calling supervisor."
  @spec start_link(non_neg_integer()) :: GenServer.on_start()
  def start_link(shutdown), do: GenServer.start(__MODULE__, {self(), shutdown})

  @doc "Milliseconds that it may take to stop."
  @spec shutdown(non_neg_integer()) :: pos_integer()
  def shutdown(shutdown), do: shutdown + @margin

  @impl true
  def init({supervisor, _shutdown} = state) do
    # With this, `terminate/2` runs when the supervisor stops this process.
    Process.flag(:trap_exit, true)
    # See `Barytherium.Network.start_link/4`.
    Process.link(supervisor)
    {:ok, state}
  end

  @impl true
  def handle_call(_stray, _from, state), do: {:reply, {:error, :unknown_call}, state}

  @impl true
  def handle_cast(_stray, state), do: {:noreply, state}

  @impl true
  def handle_info({:EXIT, pid, _reason}, {pid, _shutdown} = state), do: {:stop, :shutdown, state}
  def handle_info(_stray, state), do: {:noreply, state}

  @impl true
  def terminate(_reason, {supervisor, shutdown}) do
    farewell = min(div(shutdown, @farewell_part), @longest_farewell)
    request = {:stop, max(shutdown - farewell - @margin, 0), farewell}

    # The supervisor waits for this process, and cannot be asked.
    requests = for client <- clients(supervisor), do: :gen_statem.send_request(client, request)
    deadline = System.monotonic_time(:millisecond) + shutdown
    for request <- requests, do: :gen_statem.receive_response(request, {:abs, deadline})
  end

  defp client?(pid), do: Barytherium.Client.Server.client?(pid)

  defp clients(supervisor) do
    case Process.info(supervisor, :links) do
      {:links, links} -> for pid <- links, is_pid(pid), pid != self(), client?(pid), do: pid
      # It was killed, and its children with it.
      nil -> []
    end
  end
end
