// SPDX-License-Identifier: Apache-2.0
// Fills and reads every interface as a C++ client does, and takes their type support from the libraries.

#include <iostream>

#include <robobrain_ros/action/infer.hpp>
#include <robobrain_ros/msg/error_code.hpp>
#include <robobrain_ros/msg/lifted_point.hpp>
#include <robobrain_ros/srv/ask.hpp>
#include <robobrain_ros/srv/get_affordance.hpp>
#include <robobrain_ros/srv/ground_object.hpp>
#include <robobrain_ros/srv/point_to.hpp>
#include <robobrain_ros/srv/predict_trajectory.hpp>
#include <rosidl_typesupport_cpp/action_type_support.hpp>
#include <rosidl_typesupport_cpp/service_type_support.hpp>

using namespace robobrain_ros;

template<class Service>
const void * support()
{
  return rosidl_typesupport_cpp::get_service_type_support_handle<Service>();
}

int main()
{
  srv::PointTo::Request request;
  request.query = "the red mug";
  request.max_points = 1;
  srv::PointTo::Response response;
  response.points.resize(1);
  response.points[0].status = msg::LiftedPoint::OK;
  response.points[0].pose.pose.position.x = 0.5;
  response.error_code = msg::ErrorCode::NONE;
  action::Infer::Goal goal;
  goal.task = action::Infer::Goal::TASK_POINT;
  const bool found = support<srv::PointTo>() && support<srv::GetAffordance>() &&
    support<srv::PredictTrajectory>() && support<srv::GroundObject>() && support<srv::Ask>() &&
    rosidl_typesupport_cpp::get_action_type_support_handle<action::Infer>();
  std::cout << request.query << ' ' << response.points[0].pose.pose.position.x << '\n';
  return found ? 0 : 1;
}
